# A bill of materials (CycloneDX) of what is installed in an image, told by the image's own Python: make sbom
ARG IMAGE=agenthive-runtime
FROM ${IMAGE} AS installed
USER 0:0
WORKDIR /sbom
COPY constraints.txt pyproject.toml ./
RUN ["/usr/bin/env", "-u", "VIRTUAL_ENV", "python3", "-m", "venv", "/sbom/tool"]
RUN ["/sbom/tool/bin/pip", "install", "--quiet", "--no-cache-dir", "--constraint", "constraints.txt", "cyclonedx-bom"]
RUN ["/sbom/tool/bin/cyclonedx-py", "environment", "--pyproject", "pyproject.toml", "--mc-type", "application", "--output-reproducible", "--output-file", "/sbom/sbom.cdx.json", "/opt/agenthive/bin/python"]

FROM scratch
COPY --from=installed /sbom/sbom.cdx.json /
