"""Makes MLflow's tables and bucket, or brings the tables to this image's version; may be repeated."""

import os
import subprocess
import sys

import boto3


def main() -> None:
    """Upgrade both databases, make the bucket if there is none."""
    upgrade = ["db", "upgrade"]
    run("mlflow", *upgrade, os.environ["DATABASE_URI"])
    run(sys.executable, "-m", "mlflow.server.auth", *upgrade, "--url", os.environ["AUTH_DATABASE_URI"])
    store = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL"))
    bucket = os.environ["BUCKET"]
    if bucket not in [found["Name"] for found in store.list_buckets()["Buckets"]]:
        store.create_bucket(Bucket=bucket)


def run(*command: str) -> None:
    """Run a program; its arguments hold a password, so they are not told when it fails."""
    if code := subprocess.run(command, check=False).returncode:
        raise SystemExit(f"{command[0]} ended with {code}")


main()
