"""The controller: what a policy observes and how its actions act on a base optimizer."""
