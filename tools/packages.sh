#!/bin/sh
# Installs the Debian packages that a lab and the examples need, and those named, if any is missing.
set -e
need=""
have() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }
for package in python3 python3-venv openssh-server openssh-client nftables libnftables1 iproute2 \
    busybox-static kmod iputils-ping curl dpkg-dev sudo "$@"; do
    have "$package" || need="$need $package"
done
[ -z "$need" ] && exit 0
echo "installing Debian packages:$need"
export DEBIAN_FRONTEND=noninteractive
# A package's service must not start on the user's host: an sshd or redis of ours runs in the lab.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
fi
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $need >/dev/null
