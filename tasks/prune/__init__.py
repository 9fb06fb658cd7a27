"""Set the least important weights to zero, exactly as many as asked."""
