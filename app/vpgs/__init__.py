"""Groups: what is wanted of them, who is in them, what hosts are told, what is known of them."""
