"""Keys, types and enums that KubeRay 1.7 and Kubernetes accept, as far as our manifests use them.

Hand-written from the CRDs and only as wide as our files: a key that is not listed here is an error, so a typo cannot pass as
an unknown field (which the API server would drop with a warning).

A shape is a mapping of allowed keys ("name!" is required), a one-element list, a set of allowed values, a type, or a predicate.
"""

import re
from typing import Any


def strings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())


def quantity(value: Any) -> bool:
    return isinstance(value, int | str) and re.fullmatch(r"\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?", str(value)) is not None


def quantities(value: Any) -> bool:
    return isinstance(value, dict) and all(quantity(amount) for amount in value.values())


def cron(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\d*]\S*( [\d*]\S*){4}", value) is not None


def count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


METADATA = {"name!": str, "labels": strings, "annotations": strings}
RESOURCES = {"requests!": quantities, "limits!": quantities}
SECRET_KEY = {"valueFrom!": {"secretKeyRef!": {"name!": str, "key!": str, "optional": bool}}}
ENV = {"name!": str, "value": str, "valueFrom": SECRET_KEY["valueFrom!"]}
PULL = {"Always", "IfNotPresent", "Never"}
POD_SECURITY = {
    "runAsNonRoot": bool,
    "runAsUser": count,
    "fsGroup": count,
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
}
CONTAINER = {
    "name!": str,
    "image!": str,
    "imagePullPolicy": PULL,
    "command": [str],
    "args": [str],
    "env": [ENV],
    "ports": [{"name!": str, "containerPort!": count}],
    "resources!": RESOURCES,
    "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool, "subPath": str}],
}
VOLUME = {"name!": str, "persistentVolumeClaim": {"claimName!": str}, "emptyDir": {"sizeLimit": quantity, "medium": {"Memory"}}}
POD = {
    "serviceAccountName": str,
    "restartPolicy": {"Never", "OnFailure"},
    "securityContext!": POD_SECURITY,
    "terminationGracePeriodSeconds": count,
    "containers!": [CONTAINER],
    "volumes": [VOLUME],
    "tolerations": [{"key!": str, "operator": {"Exists", "Equal"}, "value": str, "effect": {"NoSchedule"}}],
}
TEMPLATE = {"metadata": {"labels": strings, "annotations": strings}, "spec!": POD}
CLAIM = {
    "accessModes!": [{"ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"}],
    "storageClassName": str,
    "resources!": {"requests!": {"storage!": quantity}},
}

CLUSTER_SPEC = {
    "rayVersion!": str,
    "authOptions!": {"mode!": {"token"}, "secretName!": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version!": {"v2"},
        "upscalingMode": {"Default", "Aggressive", "Conservative"},
        "idleTimeoutSeconds": count,
        "imagePullPolicy": PULL,
        "resources": RESOURCES,
    },
    "gcsFaultToleranceOptions": {"redisAddress!": str, "redisPassword!": SECRET_KEY, "externalStorageNamespace": str},
    "headGroupSpec!": {"rayStartParams!": strings, "template!": TEMPLATE},
    "workerGroupSpecs!": [
        {
            "groupName!": str,
            "replicas!": count,
            "minReplicas!": count,
            "maxReplicas!": count,
            "idleTimeoutSeconds": count,
            "resources": strings,
            "rayStartParams!": strings,
            "template!": TEMPLATE,
        }
    ],
}
JOB_SPEC = {
    "entrypoint!": str,
    "clusterSelector!": strings,
    "submissionMode": {"K8sJobMode", "HTTPMode"},
    "submitterConfig": {"backoffLimit!": count},
    "preRunningDeadlineSeconds": count,
    "activeDeadlineSeconds!": count,
    "jobId": str,
    "deletionStrategy": {
        "deletionRules!": [
            # A job on a selected cluster must not delete that cluster or its workers.
            {"policy!": {"DeleteSelf", "DeleteNone"}, "condition!": {"jobStatus!": {"SUCCEEDED", "FAILED"}, "ttlSeconds": count}}
        ]
    },
}
SERVICE_SPEC = {
    "serveConfigV2!": str,
    "excludeHeadPodFromServeSvc": bool,
    "rayClusterDeletionDelaySeconds": count,
    "upgradeStrategy": {"type!": {"NewCluster", "None"}},
    "rayClusterConfig!": CLUSTER_SPEC,
}
RULE = {"apiGroups!": [str], "resources!": [str], "verbs!": [{"create", "get", "list", "watch"}]}
CRON_SPEC = {
    "schedule!": cron,
    "timeZone!": str,
    "concurrencyPolicy!": {"Forbid"},
    "startingDeadlineSeconds": count,
    "successfulJobsHistoryLimit": count,
    "failedJobsHistoryLimit": count,
    "jobTemplate!": {"spec!": {"backoffLimit": count, "activeDeadlineSeconds!": count, "template!": TEMPLATE}},
}
STATEFUL_SPEC = {
    "serviceName!": str,
    "replicas!": count,
    "selector!": {"matchLabels!": strings},
    "template!": TEMPLATE,
    "volumeClaimTemplates": [{"metadata!": {"name!": str}, "spec!": CLAIM}],
}
SUBJECT = {"kind!": {"ServiceAccount"}, "name!": str}
PORT = {"name!": str, "port!": count, "targetPort": int | str}

BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("ray.io/v1", "RayCluster"): {"spec!": CLUSTER_SPEC},
    ("ray.io/v1", "RayJob"): {"spec!": JOB_SPEC},
    ("ray.io/v1", "RayService"): {"spec!": SERVICE_SPEC},
    ("ray.io/v1", "RayCronJob"): {"spec!": {"schedule!": cron, "timeZone": str, "suspend": bool, "jobTemplate!": JOB_SPEC}},
    ("batch/v1", "CronJob"): {"spec!": CRON_SPEC},
    ("v1", "ServiceAccount"): {},
    ("v1", "PersistentVolumeClaim"): {"spec!": CLAIM},
    ("v1", "Service"): {"spec!": {"clusterIP": {"None"}, "selector!": strings, "ports!": [PORT]}},
    ("apps/v1", "StatefulSet"): {"spec!": STATEFUL_SPEC},
    ("rbac.authorization.k8s.io/v1", "Role"): {"rules!": [RULE]},
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): {
        "subjects!": [SUBJECT],
        "roleRef!": {"apiGroup!": {"rbac.authorization.k8s.io"}, "kind!": {"Role"}, "name!": str},
    },
}
