#!/bin/sh
# Everything on a cluster, from none to a champion that answers: make cluster-demo. At size smoke; SIZE=tiny takes longer.
#
# Which cluster: the one that CLUSTER_SCRIPT brings up (`up`, `build TAG DIR`, as in tests/k8s), else a new one of kind,
# else the one that KUBECONFIG names, whose nodes must find the images. The way by kind has not been run by us.
# The cluster stays; the last lines say what to open and how to take it down.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
size=${SIZE:-smoke}
work=${DEMO_FOLDER:-$root/outputs/cluster-demo}
python=${PYTHON:-$root/.venv/bin/python}
vargpt() { "$python" -m training.commands "$@"; }
say() { printf '\n== %s (%s s)\n' "$1" "$(($(date +%s) - began))"; }
began=$(date +%s)
image() { sed -n "s/.*{name: $1, newName: \([^,]*\), newTag: \([^}]*\)}.*/\1:\2/p" "$root/k8s/images/kustomization.yaml"; }

say "a cluster"
down="kubectl delete namespace vargpt"
load() { :; }
if [ -n "${CLUSTER_SCRIPT:-}" ]; then
  export KUBECONFIG="$("$CLUSTER_SCRIPT" up | sed -n 's/.*KUBECONFIG=//p' | tail -1)"
  PATH=$(dirname "$KUBECONFIG")/bin:$PATH
  down="$CLUSTER_SCRIPT down"
  build() { tag=$1; shift; "$CLUSTER_SCRIPT" build "$tag" "$root" "$@"; }
  # Without a registry, the object store's image comes from a file, under a name of its own.
  "$CLUSTER_SCRIPT" load "$(dirname "$KUBECONFIG")/bin/addons/s3/image.tar"
  gateway=kube.local/versitygw:v1.8.0
elif command -v kind >/dev/null; then
  kind get clusters | grep -qx vargpt || kind create cluster --name vargpt
  kubectl apply --server-side -k "github.com/kubeflow/training-operator.git/manifests/overlays/standalone?ref=v1.9.4"
  down="kind delete cluster --name vargpt"
  build() { tag=$1; shift; docker build --tag "$tag" "$@" "$root"; }
  load() { kind load docker-image "$1" --name vargpt; }
else
  : "${KUBECONFIG:?neither CLUSTER_SCRIPT, nor kind, nor KUBECONFIG: there is no cluster to use}"
  build() { :; }
fi
export KUBECONFIG PATH

say "images"
about=$(sh "$root/k8s/images/about.sh" cpu)
for pair in training:Dockerfile packaging:Dockerfile serving:Dockerfile mlflow:mlflow.Dockerfile postgres:postgres.Dockerfile; do
  name=${pair%%:*}; file=$root/k8s/images/${pair#*:}
  tag=$(image "vargpt-$name")
  # Several words, none of which holds a space.
  # shellcheck disable=SC2086
  set -- "$tag" --file "$file" $about --build-arg TORCH=cpu
  [ "${file##*/}" = Dockerfile ] && set -- "$@" --target "$name"
  # A cluster of CLUSTER_SCRIPT has a base image and a folder of wheels of its own.
  if [ -n "${CLUSTER_SCRIPT:-}" ]; then
    set -- "$@" --build-arg BASE=localhost/python:3.11
  else
    set -- "$@" --build-arg UV_TORCH_BACKEND=cpu
  fi
  build "$@"
  load "$tag"
done

say "the platform"
kubectl kustomize "$root/k8s/overlays/tiny" | sed "s#$(image versitygw)#${gateway:-$(image versitygw)}#" |
  kubectl apply -f -
kubectl -n vargpt rollout status deployment/mlflow --timeout 600s

say "the pipeline: data, backbones, three stages, evaluation"
mkdir -p "$work"
# What is not committed counts, too: it is in the images.
tree=$(git -C "$root" stash create)
git -C "$root" archive "${tree:-HEAD}" | tar -x -C "$work"
cd "$work"
[ -d .git ] || { git init -q && git add -A && git -c user.name=demo -c user.email=demo@localhost commit -qm demo; }
sed -i "s/^launcher: .*/launcher: kubernetes/; s/^size: .*/size: $size/" params.yaml
"$python" -m dvc pull -q data.dvc
PATH=$(dirname "$python"):$PATH VARGPT_NAMESPACE=vargpt "$python" -m dvc repro

say "promotion and packaging"
export VARGPT_NAMESPACE=vargpt
vargpt submit release --wait

say "the service"
kubectl apply -k k8s/overlays/tiny/serving
kubectl -n vargpt port-forward service/mlflow 5000 >/dev/null & forward=$!
trap 'kill $forward 2>/dev/null || true' EXIT
secret() { kubectl -n vargpt get secret mlflow-promoter -o "jsonpath={.data.$1}" | base64 -d; }
MLFLOW_TRACKING_USERNAME=$(secret MLFLOW_TRACKING_USERNAME) MLFLOW_TRACKING_PASSWORD=$(secret MLFLOW_TRACKING_PASSWORD)
export MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_URI=http://127.0.0.1:5000
sleep 3
vargpt deploy

say "a question"
kubectl -n vargpt port-forward service/vargpt 3000:80 >/dev/null & asked=$!
trap 'kill $forward $asked 2>/dev/null || true' EXIT
sleep 3
vargpt ask "Draw a red seven on white and describe it." --url http://127.0.0.1:3000 --seed 7 --out reply.png

say "done"
cat <<EOF
picture:   $work/reply.png
runs:      kubectl -n vargpt port-forward service/mlflow 5000, then http://127.0.0.1:5000
           as $MLFLOW_TRACKING_USERNAME, password in the secret mlflow-promoter
service:   kubectl -n vargpt port-forward service/vargpt 3000:80, then http://127.0.0.1:3000
jobs:      VARGPT_NAMESPACE=vargpt vargpt jobs
take down: $down
EOF
