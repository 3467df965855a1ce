"""The exact model's own text, fed to every scheme token by token."""
