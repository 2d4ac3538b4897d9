"""The parts of Med-K2N, in the order of the paper (docs/model.md has their equations).

| symbol             | name               | file                                    | test                         |
|--------------------|--------------------|-----------------------------------------|------------------------------|
| x_i                | modality as frame  | frame_encoder.py                        | contract/test_encoders.py    |
| F_i                | frame encoder      | encoders/conv.py, encoders/hiera.py     | contract/test_encoders.py    |
| F_s                | MultiScaleNet      | multi_scale_net.py, mamba.py, spiral.py | unit/test_mamba.py           |
| mu_i, lambda_i     | innovation         | evidence.py, proposals.py               | contract/test_models.py      |
| W_ij               | PreWeightNet       | pre_weight_net.py                       | contract/test_lesson.py      |
| tau_j, T_j         | ThresholdNet       | threshold_net.py                        | contract/test_lesson.py      |
| P_ij (W_eff)       | EffiWeightNet      | effi_weight_net.py                      | contract/test_lesson.py      |
| C <- C + {i}       | progressive fusion | progressive_fusion.py, control.py       | contract/test_models.py      |
| G(P x, P)          | synthesizer        | presence_trunk.py, base_image.py        | contract/test_models.py      |
| y_j                | TaskHeadNet        | task_head_net.py                        | contract/test_models.py      |
| e_i                | CMIM               | modality_embedding.py                   | contract/test_identity_phase.py |

The rest of CMIM, the causal modality identity module, is outside a model: texts, V and the judge V' in
`medk2n.identity`, how they learn in `training/identity.py`, what they ask of an image in `losses/identity.py`.
"""
