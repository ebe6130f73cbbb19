#!/usr/bin/env bash
# Secrets of deploy/compose.yaml, new ones, in deploy/secrets (mode 0700). Run it once, with gg-ray on the PATH; it overwrites nothing.
# Files that containers of other users read are 0444: the folder keeps everybody else out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
umask 077
mkdir secrets 2> /dev/null || { echo "deploy/secrets is there already; remove it to make new ones" >&2; exit 1; }
random() { python3 -c 'import secrets; print(secrets.token_urlsafe(32))'; }

password=$(random)
digest=$(printf '%s' "$password" | sha256sum | cut -d ' ' -f 1)
sed "s/PASSWORD_SHA256/$digest/" redis-users.acl.example > secrets/redis-users.acl
printf 'redis://gg:%s@redis:6379/0\n' "$password" > secrets/redis-url
random > secrets/grafana-password
gg-ray keys add prometheus --scope read --file secrets/keys.json > secrets/metrics-key
gg-ray keys add operator --scope read operate score --file secrets/keys.json > secrets/operator-key
chmod 444 secrets/redis-users.acl secrets/metrics-key secrets/grafana-password
echo "deploy/secrets: sign in to the page with the key in operator-key, to Grafana as admin with grafana-password" >&2
