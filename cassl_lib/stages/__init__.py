"""The stages of CA-SSL (Fig. 2), a file each.

    registry          the one list of stages: name, number in the paper, what it starts from
    pseudo_labeler    1   labeled images, class-agnostic -> pseudo labeler                 (Sec. 3.1, eq. 1)
    pseudo_labels         the pseudo labeler on unlabeled images -> a pseudo-label store   (eqs. 2 and 3)
    warmup            2   the target detector on pseudo labels alone                       (eq. 4)
    finetune          3   the target detector on labeled images with classes               (eq. 5)

    requests          what is asked for: a stage, its configuration, the runs it starts from
    identity          what decides a run's result, and so its name
    graph             `obtain` a request's run: find it, resume it, or make it and what it starts from

A stage's function receives its finished inputs; only `graph` decides what has to be made.
"""
