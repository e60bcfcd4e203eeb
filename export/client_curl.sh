#!/usr/bin/env bash
# Sends labelled examples and queries to a model server by curl, and prints its JSON answer.
#
#     ./client_curl.sh support.csv query.csv [localhost:8501] [initialization]
#
# The CSV files have a header. The last column of the first is the target; the second has no target.
# For classifiers, whose targets are labels: LABELS=1 ./client_curl.sh ...
# For ratings, whose inputs are identifiers of items: IDENTIFIERS=1 ./client_curl.sh ..., or
# IDENTIFIERS=words if they are strings.
set -euo pipefail
support=$1 query=$2 server=${3:-localhost:8501} model=${4:-initialization}

# The columns are sent as they stand, so those of both files must be the same ones.
names=$(head -n 1 "$support" | tr -d '\r') asked=$(head -n 1 "$query" | tr -d '\r') bom=$'\xef\xbb\xbf'
if [[ "${names#"$bom"}," != "${asked#"$bom"},"* ]]; then
    echo "Expected the columns of $support in $query, got $asked; put them in one order." >&2
    exit 2
fi

# rows FILE FIRST LAST MARK: JSON rows of columns FIRST to LAST, where 0 is the last and -1 the one
# before, with MARK around each cell.
rows() {
    awk -F, -v first="$2" -v last="$3" -v mark="${4-}" '
        { sub(/\r$/, "") }
        NR > 1 && NF { from = first > 0 ? first : NF + first; to = last > 0 ? last : NF + last
            row = mark $from mark; for (i = from + 1; i <= to; i++) row = row "," mark $i mark
            printf "%s[%s]", separator, row; separator = "," }' "$1"
}
mark=; [[ ${IDENTIFIERS:-0} == words ]] && mark='"'
inputs=$(rows "$support" 1 -1 "$mark") queries=$(rows "$query" 1 0 "$mark") targets=$(rows "$support" 0 0)
[[ ${LABELS:-0} == 1 ]] && targets=${targets//[\[\]]/}
[[ ${IDENTIFIERS:-0} != 0 ]] && inputs=${inputs//[\[\]]/} queries=${queries//[\[\]]/}
# The exit status is 22 if the server refuses; its answer then says why.
curl --silent --show-error --fail-with-body --max-time 30 --data @- \
    "http://$server/v1/models/$model:predict" <<END
{"signature_name": "adapt_and_predict", "inputs": {
  "support_x": [$inputs], "support_y": [$targets], "query_x": [$queries]}}
END
