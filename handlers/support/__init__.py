"""What the handlers are made of; nothing in here attaches to an Engine by itself."""
