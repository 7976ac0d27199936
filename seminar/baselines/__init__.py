"""The field's models beside SEMINAR: one paper a file, the same data, channels, features, heads, loss and protocol."""
