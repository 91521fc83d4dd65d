"""Names under which scanlab keeps its facts in the studies and trials of a storage.

Workers of different versions share a storage: a name that was written once keeps its meaning.
"""

from __future__ import annotations

# Of a trial that is being evaluated.
OWNER = "owner"  # the process that evaluates it
BEAT = "beat"  # when that process was last heard of, in seconds since the epoch
ENDED = "ended"  # why the evaluation ended without a record: DIED or GIVEN_BACK
DIED = "died"
GIVEN_BACK = "given back"

# Of a trial with a record.
RECORD = "record"  # the id of the record
LINE = "line"  # the record itself, as one line of a results folder
REASON = "reason"  # why it is not ok

# Of a trial that took part in a comparison of finalists.
PLACE = "place"
LABEL = "label"
WHY = "why"  # the sentence that names the winner, at the winner

# Of a study: its subject.
FACTS = "facts"
