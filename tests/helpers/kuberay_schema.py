"""A strict JSON schema of the custom resources of KubeRay 1.6, ray.io/v1: a field that it does not name is wrong.

The fields are those of KubeRay's API reference; of Kubernetes' own types, those that a Ray pod uses.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WORDS: Schema = {"type": "object", "additionalProperties": TEXT}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}


def fields(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object of these fields and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def many(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


SECRET_KEY = fields(("name", "key"), name=TEXT, key=TEXT, optional=FLAG)
ENV = fields(("name",), name=TEXT, value=TEXT, valueFrom=fields((), secretKeyRef=SECRET_KEY))
AMOUNTS: Schema = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = fields((), requests=AMOUNTS, limits=AMOUNTS)
CONTAINER = fields(
    ("name", "image"),
    name=TEXT,
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    env=many(ENV),
    ports=many(fields(("containerPort",), containerPort=COUNT, name=TEXT, protocol=one_of("TCP", "UDP"))),
    resources=RESOURCES,
    volumeMounts=many(fields(("name", "mountPath"), name=TEXT, mountPath=TEXT, readOnly=FLAG, subPath=TEXT)),
)
VOLUME = fields(
    ("name",),
    name=TEXT,
    emptyDir=fields((), medium=one_of("", "Memory"), sizeLimit=QUANTITY),
    persistentVolumeClaim=fields(("claimName",), claimName=TEXT, readOnly=FLAG),
)
TOLERATION = fields((), key=TEXT, operator=one_of("Exists", "Equal"), value=TEXT, effect=TEXT)
POD = fields(
    ("containers",),
    containers={**many(CONTAINER), "minItems": 1},
    volumes=many(VOLUME),
    serviceAccountName=TEXT,
    nodeSelector=WORDS,
    tolerations=many(TOLERATION),
    restartPolicy=one_of("Always", "OnFailure", "Never"),
    terminationGracePeriodSeconds=COUNT,
)
METADATA = fields((), name=TEXT, namespace=TEXT, labels=WORDS, annotations=WORDS)
TEMPLATE = fields(("spec",), metadata=METADATA, spec=POD)

HEAD_GROUP = fields(
    ("template",),
    template=TEMPLATE,
    rayStartParams=WORDS,
    labels=WORDS,
    resources=WORDS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
    enableIngress=FLAG,
)
WORKER_GROUP = fields(
    ("groupName", "template", "minReplicas", "maxReplicas"),
    groupName=TEXT,
    template=TEMPLATE,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    rayStartParams=WORDS,
    labels=WORDS,
    resources=WORDS,
    suspend=FLAG,
    scaleStrategy=fields((), workersToDelete=many(TEXT)),
)
AUTOSCALER = fields(
    (),
    version=one_of("v1", "v2"),
    idleTimeoutSeconds=COUNT,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    resources=RESOURCES,
    env=many(ENV),
)
CREDENTIAL = fields((), value=TEXT, valueFrom=fields(("secretKeyRef",), secretKeyRef=SECRET_KEY))
FAULT_TOLERANCE = fields(
    ("redisAddress",),
    redisAddress=TEXT,
    redisUsername=CREDENTIAL,
    redisPassword=CREDENTIAL,
    externalStorageNamespace=TEXT,
)
CLUSTER_SPEC = fields(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=fields((), mode=one_of("token", "disabled"), secretName=TEXT, enableK8sTokenAuth=FLAG),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=AUTOSCALER,
    gcsFaultToleranceOptions=FAULT_TOLERANCE,
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs=many(WORKER_GROUP),
    headServiceAnnotations=WORDS,
    suspend=FLAG,
    managedBy=TEXT,
)
CONDITION = fields(
    (),
    jobStatus=one_of("PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"),
    jobDeploymentStatus=TEXT,
    ttlSeconds=COUNT,
)
DELETIONS = many(
    fields(
        ("policy", "condition"),
        policy=one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"),
        condition=CONDITION,
    )
)
JOB_SPEC = fields(
    ("entrypoint",),
    entrypoint=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    rayClusterSpec=CLUSTER_SPEC,
    clusterSelector=WORDS,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    deletionStrategy=fields(("deletionRules",), deletionRules=DELETIONS),
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    metadata=WORDS,
    entrypointNumCpus={"type": "number", "minimum": 0},
    entrypointNumGpus={"type": "number", "minimum": 0},
    entrypointResources=TEXT,
    suspend=FLAG,
)


def resource(kind: str, spec: Schema) -> Schema:
    required = ("apiVersion", "kind", "metadata", "spec")
    return fields(required, apiVersion=one_of("ray.io/v1"), kind=one_of(kind), metadata=METADATA, spec=spec)


SCHEMAS = {"RayCluster": resource("RayCluster", CLUSTER_SPEC), "RayJob": resource("RayJob", JOB_SPEC)}
