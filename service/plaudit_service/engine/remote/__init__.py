"""Servers that compute what outgrows this process (vLLM): asked over HTTP, and never believed. Knows no queues."""
