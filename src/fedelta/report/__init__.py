"""What people read: tables, curves and lines on a terminal."""
