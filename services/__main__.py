"""python -m services: runs NATS and all four services on this machine."""

from services.local.cli import app

if __name__ == "__main__":
    app(prog_name="python -m services")
