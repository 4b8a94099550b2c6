# Makes the database and MLflow's account where there is none yet, then runs the server.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  rm -rf "$PGDATA.new"
  initdb -D "$PGDATA.new" -U postgres --auth-local=trust --auth-host=scram-sha-256 --pwfile=/secret/password \
    --encoding=UTF8 --locale=C.UTF-8
  echo "host all all all scram-sha-256" >> "$PGDATA.new/pg_hba.conf"
  pg_ctl -D "$PGDATA.new" -w -o "-k /tmp -c listen_addresses=" start
  psql -h /tmp -U postgres -v ON_ERROR_STOP=1 -v pw="$(cat /secret/mlflow)" <<'SQL'
CREATE ROLE mlflow LOGIN PASSWORD :'pw';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
SQL
  pg_ctl -D "$PGDATA.new" -w stop
  # Whole or not at all.
  mv "$PGDATA.new" "$PGDATA"
fi
exec postgres -D "$PGDATA" -k /tmp -c listen_addresses='*' -c logging_collector=off
