"""What things are: frozen values, ids and errors. Imports nothing but attrs and the stdlib's pure parts."""
