-- look: which of these keys exist, and the stamp of each. Reads only.
--
-- KEYS     records and possible artifacts of some subjects, the likely ones first
-- ARGV[1]  a letter for each key: 'r' a record, 's' a result (strings only: a key
--          of another type is not Celery's result), 'c' a companion (any type)
-- ARGV[2]  how many bytes of values to return before stopping early
--
-- Returns {next, index, a, b, c, index, a, b, c, …}, index from 1 into KEYS:
--   next      the first key that was not looked at, or #KEYS + 1
--   a, b, c   of an artifact its stamp (stamp.lua): length, head, tail;
--             of a record: 0, evidence ('revived' where its row has been seen
--             to exist since), and one text of six fields with a line break
--             between: hold_until, revoked_at, ended, messages, table, key ('' for none)
local kinds, budget = ARGV[1], tonumber(ARGV[2])
local out = { #KEYS + 1 }
local missing = call('EXISTS', unpack(KEYS)) -- how many are still to be met

for i = 1, #KEYS do
  if missing == 0 then
    break
  end
  if budget <= 0 then
    out[1] = i
    break
  end
  local kind = string.sub(kinds, i, i)
  local a, b, c
  if kind == 'r' then
    local record = call('HMGET', KEYS[i], 'evidence', 'revived_at', 'hold_until', 'revoked_at', 'ended', 'messages', 'table', 'key')
    if record[1] then
      a, b = 0, record[2] and 'revived' or record[1]
      c = (record[3] or '') .. '\n' .. (record[4] or '') .. '\n' .. (record[5] or '') .. '\n' .. (record[6] or '') .. '\n' .. (record[7] or '') .. '\n' .. (record[8] or '')
      missing = missing - 1
    end
  else
    a, b, c = stamp(KEYS[i])
    if a then
      missing = missing - 1
      budget = budget - #b - #c
    end
  end
  if a and not (kind == 's' and b == '' and c ~= '') then
    local n = #out
    out[n + 1], out[n + 2], out[n + 3], out[n + 4] = i, a, b, c
  end
end
return out
