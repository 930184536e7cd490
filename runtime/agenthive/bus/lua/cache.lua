-- The read-through cache (agenthive.cache says why it is right). KEYS[1] is the gate of the hive,
-- "ah:{instance/namespace/hive}:gate"; all keys of a hive's cache share its slot:
--   c:<name>  one entry, or the marker of who is filling it; always with an expiry:
--             "L<token>"                        the marker: that caller may fill the entry
--             "V<version> <bucket> <document>"  a value; of calls, which have no versions, version 0
--             "N0 <bucket> "                    there is no such document
--             "B0 <bucket> "                    the document is too large to be kept here
--   cb        hash, the byte account: expiry bucket -> bytes of the entries that end in it; t: their sum; n: the bucket
--             of the time when the sum was last freed of what had ended. Only where the cache has a bound.
-- An entry ends before its bucket does, and names its bucket, so that the account is exact whatever happens to it; what
-- others delete stays in the account until its bucket is over.

do
  local LEASE_MS = 5000
  local BUCKET_MS = 5000
  local ACCOUNT_MS = 7200000 -- longer than any entry lives
  local ENTRY_BYTES = 128 -- what a server needs for an entry besides its key and its value
  local HEAD = 63 -- as much of an entry tells whose marker it is
  local CHUNK = 100 -- of one command

  -- The account, freed of what has ended by now. `bound` 0: there is none.
  local function open_account(P, bound)
    local key, now = P .. 'cb', now_ms()
    local account = { key = key, now = now, bound = bound, total = 0, changes = {} }
    if bound == 0 then
      return account
    end
    local current = math.floor(now / BUCKET_MS)
    local seen = redis.call('HMGET', key, 't', 'n')
    if tonumber(seen[2]) == current then
      account.total = tonumber(seen[1]) or 0
      return account
    end
    for bucket, bytes in pairs(fields_of(redis.call('HGETALL', key))) do
      bucket = tonumber(bucket)
      if bucket and bucket <= current then
        redis.call('HDEL', key, bucket)
      elseif bucket then
        account.total = account.total + tonumber(bytes)
      end
    end
    redis.call('HSET', key, 't', account.total, 'n', current)
    redis.call('PEXPIRE', key, ACCOUNT_MS)
    return account
  end

  local function change(account, bucket, bytes)
    if account.bound == 0 then
      return
    end
    account.total = account.total + bytes
    account.changes[bucket] = (account.changes[bucket] or 0) + bytes
  end

  local function close_account(account)
    if next(account.changes) == nil then
      return
    elseif account.total < 0 then -- somebody deleted it, and not the entries
      redis.call('DEL', account.key)
      return
    end
    local sum = 0
    for bucket, bytes in pairs(account.changes) do
      sum = sum + bytes
      if redis.call('HINCRBY', account.key, bucket, bytes) == 0 then
        redis.call('HDEL', account.key, bucket)
      end
    end
    redis.call('HINCRBY', account.key, 't', sum)
  end

  -- ARGV: token; names. Returns for each what is there, entry or marker, or nil: the caller may fill it.
  local function cache_lease(keys, argv)
    local P, marker, answers = prefix_of(keys) .. 'c:', 'L' .. argv[1], {}
    for i = 2, #argv do
      answers[i - 1] = redis.call('SET', P .. argv[i], marker, 'NX', 'GET', 'PX', LEASE_MS)
    end
    return answers
  end

  -- ARGV: pairs of name and token, of leases to be prolonged.
  local function cache_renew(keys, argv)
    local P = prefix_of(keys) .. 'c:'
    for i = 1, #argv, 2 do
      if redis.call('GETRANGE', P .. argv[i], 0, HEAD) == 'L' .. argv[i + 1] then
        redis.call('PEXPIRE', P .. argv[i], LEASE_MS)
      end
    end
    return 1
  end

  -- ARGV: bound in bytes, 0 for none; then per entry: name, token, life (ms, from the lease's last renewal; 0 gives it back),
  -- "<kind><version>", document. Returns a character each: 1 filled, 0 the lease is over, 2 refused by the bound.
  local function cache_fill(keys, argv)
    local P = prefix_of(keys)
    local account, results = open_account(P, tonumber(argv[1])), {}
    for i = 2, #argv, 5 do
      local key, result = P .. 'c:' .. argv[i], '0'
      if redis.call('GETRANGE', key, 0, HEAD) == 'L' .. argv[i + 1] then
        local life = tonumber(argv[i + 2]) - LEASE_MS + redis.call('PTTL', key)
        if life < 1 then
          redis.call('DEL', key)
        else
          local bucket = account.bound > 0 and math.floor((account.now + life) / BUCKET_MS) + 1 or 0
          local value = argv[i + 3] .. ' ' .. as_ms(bucket) .. ' ' .. argv[i + 4]
          local size = #key + #value + ENTRY_BYTES
          if account.bound > 0 and account.total + size > account.bound then
            redis.call('DEL', key)
            result = '2'
          else
            redis.call('SET', key, value, 'PX', as_ms(life))
            change(account, as_ms(bucket), size)
            result = '1'
          end
        end
      end
      results[#results + 1] = result
    end
    close_account(account)
    return table.concat(results)
  end

  -- What was committed. ARGV: bound in bytes, 0 for none; number of documents; their names; then for each the version
  -- before, the version, the document (versions "": forget it). An entry of the version before takes the new document
  -- and keeps its expiry; one of the version itself stays; anything else goes, markers too. Nothing comes to be that was
  -- not there.
  local function cache_change(keys, argv)
    local P, bound, count, account = prefix_of(keys) .. 'c:', tonumber(argv[1]), tonumber(argv[2]), nil
    for first = 1, count, CHUNK do
      local names = {}
      for i = first, math.min(first + CHUNK - 1, count) do
        names[#names + 1] = P .. argv[i + 2]
      end
      -- One command for many: most of what is written is not in the cache, and what is gets as large a document.
      for n, entry in ipairs(redis.call('MGET', unpack(names))) do
        local at = 3 * (first + n - 2) + count + 3
        local before, version, key = argv[at], argv[at + 1], names[n]
        local kind, found, bucket = string.match(entry or '', '^(%u)(%d+) (%d+) ')
        if entry and not found then
          redis.call('DEL', key)
        elseif entry and not (kind == 'V' and found == version) then
          account = account or open_account(prefix_of(keys), bound)
          local value = 'V' .. version .. ' ' .. bucket .. ' ' .. argv[at + 2]
          local growth = #value - #entry
          local fits = bound == 0 or growth <= 0 or account.total + growth <= bound
          if fits and kind == 'V' and found == before then
            redis.call('SET', key, value, 'KEEPTTL')
            change(account, bucket, growth)
          else
            redis.call('DEL', key)
            change(account, bucket, -(#key + #entry + ENTRY_BYTES))
          end
        end
      end
    end
    if account then
      close_account(account)
    end
    return 1
  end

  define('cache_lease', cache_lease, {})
  define('cache_renew', cache_renew, { 'allow-oom' })
  define('cache_fill', cache_fill, {})
  define('cache_change', cache_change, { 'allow-oom' })
end
