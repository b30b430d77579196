"""Services: engines in processes of their own behind the interface of one engine in this process."""
