"""Reports of recorded trials: selection, tables, figures, pages."""
