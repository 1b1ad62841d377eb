"""A live page and a server that many clients share: `spikegpt serve RUN`, which needs the extra `serve`."""
