"""What runs on a host while it becomes a node, or stops being one: sent there over SSH.

The pusher sends these modules as one uncompressed zip archive, and requests, to any Python 3.11 as
root, before anything of ours is there: standard library only, and no import of ours but from this
package. Each request is idempotent and answers with JSON; what the user must know is `Refused`.
"""
