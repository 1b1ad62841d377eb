"""The matrix-vector product that reads only the rows of inputs that fired."""
