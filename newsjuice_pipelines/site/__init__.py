"""The report site: static pages over all materialised reports. Free of Dagster and of both domains: it reads artefacts only."""
