"""Problems, ops, backends, and what is right."""
