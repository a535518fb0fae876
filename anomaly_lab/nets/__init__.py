"""Plain networks, without the Lightning around them."""
