"""The gateway: a server with OpenAI's API and a memory (extra ``serve``)."""
