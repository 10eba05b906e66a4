"""How the parameters of a whole model are shared out among its weights."""
