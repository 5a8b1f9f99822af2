"""ROOT on several processes: each matrix is orthogonalized once, by one of them."""
