"""Functions of single numbers that training spends its time on, each in one pass: squared ReLU, gate, dropout."""
