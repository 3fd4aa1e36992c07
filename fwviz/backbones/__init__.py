"""Model families: parameters and a batch in, features out."""
