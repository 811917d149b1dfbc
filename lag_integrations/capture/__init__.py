"""What the captures of both frameworks share."""
