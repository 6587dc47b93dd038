"""Tideserve's wire: messages (generated), methods and authentication."""
