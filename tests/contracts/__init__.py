"What every part has to do, whoever wrote it: parts come from the registry, arguments from signatures"
