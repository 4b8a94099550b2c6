# Debian's HAProxy under our numeric user.
ARG BASE=debian:12-slim
FROM ${BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends haproxy && rm -rf /var/lib/apt/lists/*
# Before a RUN, as in Dockerfile: else buildah would take a cached layer with the labels of another commit.
ARG GIT_COMMIT=unknown
ARG GIT_DIRTY=unknown
ARG LOCK_SHA256=unknown
RUN haproxy -v
LABEL org.opencontainers.image.title=vargpt-haproxy org.opencontainers.image.revision=${GIT_COMMIT} \
      io.vargpt.git-dirty=${GIT_DIRTY} io.vargpt.lock-sha256=${LOCK_SHA256}
USER 10001:10001
CMD ["haproxy", "-W", "-db", "-f", "/conf/haproxy.cfg"]
