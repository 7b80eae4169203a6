"""What things are: frozen values, ids, errors. Imports only attrs and pure parts of the stdlib."""
