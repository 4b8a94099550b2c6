#!/bin/sh
# Makes the secrets that k8s/platform refers to, with new passwords; what exists already stays. NAMESPACE, and the keys of
# an object store elsewhere (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) with its MLFLOW_S3_ENDPOINT_URL, AWS_DEFAULT_REGION,
# BUCKET and MLFLOW_ARTIFACTS_DESTINATION, come from the environment.
set -eu
namespace=${NAMESPACE:-vargpt}
new() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
secret() {
  name=$1; shift
  kubectl -n "$namespace" get secret "$name" >/dev/null 2>&1 ||
    kubectl -n "$namespace" create secret generic "$name" "$@"
}

kubectl get namespace "$namespace" >/dev/null 2>&1 || kubectl create namespace "$namespace"
database=$(new)
if secret postgres --from-literal=password="$(new)" --from-literal=mlflow="$database" | grep -q created; then
  address=postgresql+psycopg2://mlflow:$database@postgres:5432
  secret mlflow --from-literal=uri="$address/mlflow" --from-literal=auth-uri="$address/mlflow_auth" \
    --from-literal=admin-password="$(new)" --from-literal=flask-key="$(new)" \
    --from-literal=basic_auth.ini="[mlflow]
default_permission = READ
database_uri = $address/mlflow_auth
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60"
fi
set --
for name in MLFLOW_S3_ENDPOINT_URL AWS_DEFAULT_REGION BUCKET MLFLOW_ARTIFACTS_DESTINATION; do
  if value=$(printenv "$name"); then set -- "$@" --from-literal="$name=$value"; fi
done
secret object-store "$@" --from-literal=AWS_ACCESS_KEY_ID="${AWS_ACCESS_KEY_ID:-vargpt}" \
  --from-literal=AWS_SECRET_ACCESS_KEY="${AWS_SECRET_ACCESS_KEY:-$(new)}"
for account in trainer promoter; do
  secret "mlflow-$account" --from-literal=MLFLOW_TRACKING_USERNAME="$account" \
    --from-literal=MLFLOW_TRACKING_PASSWORD="$(new)"
done
