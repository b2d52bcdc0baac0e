"""What only post-training needs: dialogs, preferences, and what is learned from them."""
