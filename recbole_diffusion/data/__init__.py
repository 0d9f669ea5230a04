"""What the models read: rows of prefixes and of users, and negatives."""
