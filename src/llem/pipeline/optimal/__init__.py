"""`find_optimal`: a user's model, data and loss to a law and its optimum."""
