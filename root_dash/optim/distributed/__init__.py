"""ROOT on several processes: each matrix is orthogonalized by one process."""
