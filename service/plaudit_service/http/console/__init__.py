"""The console: one page in which a person looks at scores. It asks the service's own routes, as any client does."""
