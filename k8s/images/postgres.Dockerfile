# Debian's Postgres under our numeric user, with a root that nobody writes to.
ARG BASE=debian:12-slim
FROM ${BASE}
# The server wants its user to have a name, and Debian's package would make a database of its own.
RUN groupadd --gid 10001 postgres \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/postgresql postgres \
    && mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf \
    && apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql-15 && rm -rf /var/lib/apt/lists/*
ENV PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/data/pg
COPY k8s/images/postgres-entry.sh /entry.sh
# Before a RUN, as in Dockerfile: else buildah would take a cached layer with the labels of another commit.
ARG GIT_COMMIT=unknown
ARG GIT_DIRTY=unknown
ARG LOCK_SHA256=unknown
RUN sh -n /entry.sh
LABEL org.opencontainers.image.title=vargpt-postgres org.opencontainers.image.revision=${GIT_COMMIT} \
      io.vargpt.git-dirty=${GIT_DIRTY} io.vargpt.lock-sha256=${LOCK_SHA256}
USER 10001:10001
CMD ["sh", "/entry.sh"]
