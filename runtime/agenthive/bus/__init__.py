"""The message bus over Redis Streams."""
