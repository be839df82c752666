"""The evidence a person reads: tables, figures, page."""
