"""The Gymnasium environments in which a controller is learned."""
