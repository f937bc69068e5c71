"""An HTTP server with the interface of the OpenAI audio API (extra ``server``)."""
