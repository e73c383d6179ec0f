"""The shell: `cassl VERB`, the same as `python -m cassl_lib VERB`."""
